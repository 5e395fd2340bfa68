"""What the operator decided: found, read, checked, and from then on only read.

`tree` reads YAML, `schema` says what may be written, `rules` what must hold between the parts, and
`load` tells the operator all of it at once.
"""

from s5jtd.config.expand import expand_volumes
from s5jtd.config.load import find, load
from s5jtd.config.reload import changes, merged
from s5jtd.config.schema import Config, JobConfig, Limits, VolumeConfig, VolumeSpec
from s5jtd.config.sides import FolderDestination, FolderSource, S3Destination, S3Side

__all__ = [
    "Config",
    "FolderDestination",
    "FolderSource",
    "JobConfig",
    "Limits",
    "S3Destination",
    "S3Side",
    "VolumeConfig",
    "VolumeSpec",
    "changes",
    "expand_volumes",
    "find",
    "load",
    "merged",
]
