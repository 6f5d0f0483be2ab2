"""Istio's objects, translated into Envoy's configuration."""

from mesh.istio.kinds import Untranslatable as Untranslatable
from mesh.istio.kinds import duration as duration
from mesh.istio.objects import Objects as Objects
from mesh.istio.writing import Json as Json
from mesh.istio.writing import merged as merged
