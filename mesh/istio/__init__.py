"""Istio's objects, translated into Envoy's configuration."""

from mesh.istio.objects import Objects as Objects
from mesh.istio.reading import Untranslatable as Untranslatable
from mesh.istio.writing import Json as Json
from mesh.istio.writing import duration as duration
from mesh.istio.writing import merged as merged
