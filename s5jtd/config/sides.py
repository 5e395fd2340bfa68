"""The two ends of a job as frozen models: buckets and folders, credentials, ways to reach them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_serializer, model_validator

from s5jtd.config import values as v

CannedAcl = Literal[
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
]


class Section(BaseModel):
    """A mapping of the file: its fields are the file's keys.  A typo is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_means_the_default(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


class ProfileCredentials(Section):
    """A profile of the AWS files of the daemon's user."""

    profile: v.ProfileName


class KeyCredentials(Section):
    """Keys in the file itself, which then only its owner and group may read."""

    access_key_id: v.AccessKeyId
    secret_access_key: v.Secret
    session_token: v.Secret | None = None

    @field_serializer("secret_access_key", "session_token")
    def _hide(self, secret: object) -> str | None:
        return None if secret is None else "***"


class SystemdCredentials(Section):
    """A credential that systemd hands to the unit (LoadCredential=)."""

    systemd: v.CredentialName


class EnvCredentials(Section):
    """Environment variables whose names begin like this."""

    env: v.EnvPrefix


class AnonymousCredentials(Section):
    """Requests without a signature."""

    anonymous: v.Yes


#: Which form of credentials each of their keys belongs to.
_CREDENTIALS_BY_KEY = {
    "profile": "<profile>",
    "access_key_id": "<keys>",
    "secret_access_key": "<keys>",
    "session_token": "<keys>",
    "systemd": "<systemd>",
    "env": "<env>",
    "anonymous": "<anonymous>",
}


def _given(value: object, key: str) -> bool:
    """Whether a mapping of the file, or a model made from one, holds something under `key`."""
    found: object = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
    return found is not None


def _credentials_form(value: object) -> str | None:
    forms = {form for key, form in _CREDENTIALS_BY_KEY.items() if _given(value, key)}
    return forms.pop() if len(forms) == 1 else None


Credentials = Annotated[
    Annotated[ProfileCredentials, Tag("<profile>")]
    | Annotated[KeyCredentials, Tag("<keys>")]
    | Annotated[SystemdCredentials, Tag("<systemd>")]
    | Annotated[EnvCredentials, Tag("<env>")]
    | Annotated[AnonymousCredentials, Tag("<anonymous>")],
    Discriminator(
        _credentials_form,
        custom_error_type="credentials_form",
        custom_error_message="must be exactly one of {profile: NAME}, {access_key_id:, secret_access_key:,"
        " session_token:}, {systemd: NAME}, {env: PREFIX}, {anonymous: true}",
    ),
]


class Tls(Section):
    verify: bool = True
    ca_bundle: v.AbsolutePath | None = None


class S3Side(Section):
    """A bucket, the part of it below a prefix, and the ways to reach it."""

    bucket: v.Bucket
    prefix: v.KeyPrefix = ""
    region: v.Region | None = None
    endpoints: v.Urls = ()  #: empty: AWS itself
    credentials: Credentials | None = None  #: None: what the AWS libraries find by themselves
    tls: Tls = Tls()
    addressing: Literal["auto", "path", "virtual"] = "auto"
    proxy: v.ProxyUrl | None = None
    bind: v.LocalAddress | None = None
    list_version: Literal["1", "2", "auto"] = "auto"
    part_size: v.PartSize = Field(default="auto", serialization_alias="part_size_bytes")

    @property
    def key_prefix(self) -> bytes:
        """The prefix as keys are inside the daemon."""
        return self.prefix.encode()


class KmsKey(Section):
    kms_key_id: v.KmsKeyId


class S3Destination(S3Side):
    storage_class: v.StorageClass | None = None
    acl: CannedAcl | None = None
    sse: (
        Annotated[
            Annotated[Literal["AES256", "aws:kms"], Tag("<algorithm>")] | Annotated[KmsKey, Tag("<key>")],
            Discriminator(lambda value: "<key>" if isinstance(value, dict | KmsKey) else "<algorithm>"),
        ]
        | None
    ) = None
    stamp: bool = False

    @property
    def sse_algorithm(self) -> str | None:
        return "aws:kms" if isinstance(self.sse, KmsKey) else self.sse

    @property
    def sse_kms_key_id(self) -> str | None:
        return self.sse.kms_key_id if isinstance(self.sse, KmsKey) else None


class Move(Section):
    move: v.AbsolutePath


class FolderSource(Section):
    """A folder that others write to."""

    directory: v.AbsolutePath
    settle: v.Duration = Field(default=30.0, serialization_alias="settle_seconds")
    after: Annotated[
        Annotated[Literal["keep", "delete"], Tag("<word>")] | Annotated[Move, Tag("<move>")],
        Discriminator(lambda value: "<move>" if isinstance(value, dict | Move) else "<word>"),
    ] = "keep"
    symlinks: Literal["skip", "follow"] = "skip"

    @model_validator(mode="after")
    def _keeps_what_links_lead_to(self) -> Self:
        if self.symlinks == "follow" and self.after != "keep":
            raise ValueError("symlinks: follow needs after: keep; what a link leads to may lie anywhere")
        return self

    @model_validator(mode="after")
    def _moves_out_of_itself(self) -> Self:
        if isinstance(self.after, Move) and self.after.move.is_relative_to(self.directory):
            raise ValueError("after.move must lead out of the directory, or its files come round again")
        return self


class FolderDestination(Section):
    directory: v.AbsolutePath


def _kind(value: object) -> str:
    return "<folder>" if _given(value, "directory") else "<s3>"


Source = Annotated[
    Annotated[S3Side, Tag("<s3>")] | Annotated[FolderSource, Tag("<folder>")], Discriminator(_kind)
]
Destination = Annotated[
    Annotated[S3Destination, Tag("<s3>")] | Annotated[FolderDestination, Tag("<folder>")],
    Discriminator(_kind),
]
