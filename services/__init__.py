"""The services, and the chassis that they stand on."""

import os

# gRPC reads this when it is imported. Whoever is forked here becomes another program at once, for which gRPC's handlers
# do nothing but log a line that is not JSON.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
