"""How much clients may leave with the service, where it lies and for how long."""

from typing import Annotated, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]

_MIB = 1024 * 1024
_DAY = 24 * 60 * 60
MIN_EXPIRY_SECONDS = 3600


class FileSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on uploaded files. A tenant is whom its key names; without keys there is but one.

    files_folder: where uploaded files lie; None is a folder that ends with the service, so that
        nothing is kept by accident.
    max_file_bytes: bytes of one file.
    max_tenant_file_bytes: bytes of all files of a tenant.
    max_tenant_files: files of a tenant.
    max_all_file_bytes: bytes of all files together.
    file_expiry_seconds: how long a file is kept unless its upload says otherwise; one day.
    max_file_expiry_seconds: the longest an upload may ask for; 30 days. The shortest is an hour.
    """

    files_folder: str | None = None
    max_file_bytes: Count = 64 * _MIB
    max_tenant_file_bytes: Count = 512 * _MIB
    max_tenant_files: Count = 1000
    max_all_file_bytes: Count = 2048 * _MIB
    file_expiry_seconds: Annotated[int, msgspec.Meta(ge=60)] = _DAY
    max_file_expiry_seconds: Annotated[int, msgspec.Meta(ge=MIN_EXPIRY_SECONDS)] = 30 * _DAY
