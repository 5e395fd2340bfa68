"""`s5jtd import`: an old `config.yaml` or `datasync-config.env` becomes a configuration, on stdout."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from s5jtd.config import load
from s5jtd.config.tree import Unreadable, plain, read
from s5jtd.errors import ConfigError, Exit, UsageError

_SIDES = ("source", "destination")
_SIDE_WORDS = {
    "source": "source", "src": "source", "from": "source",
    "destination": "destination", "dest": "destination", "dst": "destination", "target": "destination",
}  # fmt: skip
#: What old files called a setting of a side: its name in the new configuration.
_OF_A_SIDE = {
    "bucket": "bucket", "bucket_name": "bucket", "name": "bucket",
    "prefix": "prefix", "bucket_prefix": "prefix", "key_prefix": "prefix", "subdirectory": "prefix",
    "region": "region", "aws_region": "region", "region_name": "region", "bucket_region": "region",
    "access_key": "access_key_id", "access_key_id": "access_key_id", "aws_access_key_id": "access_key_id",
    "secret_key": "secret_access_key", "secret_access_key": "secret_access_key",
    "aws_secret_access_key": "secret_access_key",
    "session_token": "session_token", "aws_session_token": "session_token",
    "profile": "profile", "aws_profile": "profile",
    "endpoint": "endpoints", "endpoints": "endpoints",
    "endpoint_url": "endpoints", "endpoint_urls": "endpoints",
    "directory": "directory", "dir": "directory",
    "storage_class": "storage_class",
}  # fmt: skip
#: Sections that only group settings.
_GROUPS = re.compile(r"^(transfer_settings|transfer|settings|limits|config|s3)_")
_LARGEST = re.compile(r"(max|maximum)_(file|object)_size|max(imum)?_size")
#: `src2l` is what a run may bring from the source to the disk.
_PER_PASS = re.compile(
    r"(max|maximum)_size_to_transfer(_src2l)?|(max|maximum)_(transfer|total|sync|run)_size"
    r"|(max|maximum)_(transfer|size)_per_(run|pass)"
)
_PER_DAY = re.compile(r"(max|maximum)_(daily_size|size_per_day|transfer_per_day|daily_transfer)")
_STAGING = re.compile(
    r"(local|intermediary|intermediate|staging|temp|tmp|volumes?|mount_points?)(_(folders?|director(y|ies)|paths?"
    r"|dirs?|buckets?|volumes?|mount_points?))?(_name)?"
)
_LIMITS = ((_LARGEST, "largest_object"), (_PER_PASS, "bytes_per_pass"), (_PER_DAY, "bytes_per_day"))
_NO_ENDPOINT = "no_endpoint"
_KEYS = ("access_key_id", "secret_access_key", "session_token")
#: One line of an env file; of what a shell would do with it, quotes and the file's variables are understood.
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
#: What makes up a value: 'as it is', "with variables", an escaped character, anything else that is no blank.
_PIECE = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^\s'"\\;]+)""")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_UNITS = {"gb": "GB", "gib": "GiB", "mb": "MB", "mib": "MiB"}
#: A bare number below this is none of bytes: the old programs counted in GiB.
_LEAST_BYTES = 1 << 20
_JOB = "imported"
_VOLUME = "/mnt/volume-01"


@dataclass(slots=True)
class Old:
    """What an old file said, in the words of the new configuration."""

    sides: dict[str, dict[str, Any]] = field(default_factory=lambda: {"source": {}, "destination": {}})
    volumes: list[str] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  #: what has no counterpart, and what to look at


def import_file(path: Path, *, with_secrets: bool) -> int:
    """Print the configuration that does what the old file did.

    Raises:
        UsageError: the file cannot be read, or is neither kind.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    old = _read_env(text) if _is_env(path, text) else _read_yaml(path, text)
    try:
        click.echo(written(old, path.name, with_secrets=with_secrets), nl=False)
    finally:
        for note in old.notes:
            click.echo(f"s5jtd: {note}", err=True)
    return Exit.DONE


def _is_env(path: Path, text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return path.suffix == ".env" or (
        bool(lines) and all(_ASSIGNMENT.fullmatch(line.strip()) for line in lines)
    )


# config.yaml


def _read_yaml(path: Path, text: str) -> Old:
    try:
        tree = plain(read(text))
    except Unreadable as error:
        raise UsageError(f"{path}:{error.line}: {error.message}") from error
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path}: it holds no settings", hint="give an old config.yaml or datasync-config.env"
        )
    if "jobs" in tree:
        raise UsageError(f"{path}: this is a configuration of s5jtd already", hint="nothing to import")
    old = Old()
    for name, value in _flat(tree):
        _place(old, name, value)
    for side in _SIDES:
        _as_folder(old, side)
    return old


def _as_folder(old: Old, side: str) -> None:
    """A bucket that was named as `s3://bucket/prefix`, and a prefix that leaves its slash out."""
    told = old.sides[side]
    bucket, _, below = told.get("bucket", "").removeprefix("s3://").partition("/")
    if bucket:
        told["bucket"] = bucket
    prefix = told.get("prefix") or below
    if prefix and not prefix.endswith("/"):
        old.notes.append(f"{side}: the prefix {prefix} was read as a folder: {prefix}/")
        prefix += "/"
    if prefix:
        told["prefix"] = prefix


def _flat(tree: Mapping[Any, Any], above: str = "") -> list[tuple[str, Any]]:
    """Every setting with the names above it, joined as if they had been one."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{above}_{key}".strip("_").lower().replace("-", "_").replace(" ", "_")
        found += _flat(value, name) if isinstance(value, dict) else [(name, value)]
    return found


def _place(old: Old, name: str, value: Any) -> None:
    """Find out what a setting means by its name."""
    if value is None or value in ("", []):
        return
    short = _GROUPS.sub("", name)
    bare = re.sub(r"_(bytes|gb|gib|mb|mib)$", "", short)
    for pattern, limit in (
        (_LARGEST, "largest_object"),
        (_PER_PASS, "bytes_per_pass"),
        (_PER_DAY, "bytes_per_day"),
    ):
        if pattern.fullmatch(bare):
            old.limits[limit] = _size(old, short, value)
            return
    word, _, rest = short.partition("_")
    rest = rest.removeprefix("s3_")
    if word in _SIDE_WORDS and (rest in _OF_A_SIDE or not rest):
        key = _OF_A_SIDE.get(rest, "bucket")
        old.sides[_SIDE_WORDS[word]][key] = _urls(value) if key == "endpoints" else str(value)
    elif _STAGING.fullmatch(short):
        _place_volumes(old, short, value)
    elif rest == "use_native_s3":
        old.notes.append(f"{name}: the engine is chosen by itself for what s5cmd cannot move")
    else:
        old.notes.append(f"{name}: has no counterpart and was left out")


def _urls(value: Any) -> list[str]:
    """Endpoints as a list, a text with commas or `no_endpoint`, which is AWS itself."""
    parts = value if isinstance(value, list) else str(value).split(",")
    return [url for part in parts if (url := str(part).strip()) and url != _NO_ENDPOINT]


def _place_volumes(old: Old, name: str, value: Any) -> None:
    for path in value if isinstance(value, list) else str(value).split(","):
        folder = str(path).strip()
        if folder.startswith("/"):
            old.volumes.append(folder.rstrip("/") or "/")
        else:
            old.notes.append(f"{name}: {folder} is no folder with an absolute path and was left out")


def _size(old: Old, name: str, value: Any) -> int | str:
    """A size with its unit, which the old programs left to the reader."""
    text = str(value).strip()
    unit = re.search(r"_(bytes|gb|gib|mb|mib)$", name)
    spelled = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgtp])(i?)b?)?", text, re.IGNORECASE)
    if spelled is None:
        raise UsageError(f"{name}: {text!r} is no size")
    number, letter, binary = spelled[1], spelled[2], spelled[3]
    if letter:
        made = f"{number}{letter.upper()}{binary.lower()}B"
    elif unit and unit[1] != "bytes":
        made = f"{number}{_UNITS[unit[1]]}"
    elif unit is None and float(number) < _LEAST_BYTES:
        made = f"{number}GiB"
        old.notes.append(f"{name}: {text} was read as {made}, as the old programs counted")
    else:
        made = str(int(float(number)))
    return int(made) if made.isdigit() else made


# datasync-config.env

#: Where each variable goes: a side or a section, and the name there.
_VARIABLES = {
    "S3_BUCKET": ("destination", "bucket"), "BUCKET": ("destination", "bucket"),
    "BUCKET_NAME": ("destination", "bucket"), "S3_BUCKET_NAME": ("destination", "bucket"),
    "S3_SUBDIRECTORY": ("destination", "prefix"), "SUBDIRECTORY": ("destination", "prefix"),
    "S3_PREFIX": ("destination", "prefix"),
    "SOURCE_DIR": ("source", "directory"), "SOURCE_DIRECTORY": ("source", "directory"),
    "S3_STORAGE_CLASS": ("destination", "storage_class"), "STORAGE_CLASS": ("destination", "storage_class"),
    "AWS_PROFILE": ("destination", "profile"), "PROFILE": ("destination", "profile"),
    "AWS_REGION": ("destination", "region"), "AWS_DEFAULT_REGION": ("destination", "region"),
    "AWS_ACCESS_KEY_ID": ("destination", "access_key_id"),
    "AWS_SECRET_ACCESS_KEY": ("destination", "secret_access_key"),
    "AWS_SESSION_TOKEN": ("destination", "session_token"),
    "S3_ENDPOINT_URL": ("destination", "endpoints"), "AWS_ENDPOINT_URL": ("destination", "endpoints"),
    "S3_SERVER_SIDE_ENCRYPTION": ("destination", "sse"), "S3_KMS_KEY_ID": ("destination", "kms_key_id"),
    "S5CMD_PART_SIZE": ("destination", "part_size"),
    "S5CMD_NUM_WORKERS": ("limits", "workers"),
    "S5CMD_RETRY_COUNT": ("job", "attempts"),
}  # fmt: skip
_EXPLAINED = {
    "S5CMD_CONCURRENCY": "how many parts of an object go at a time is chosen for each chunk",
    "S5CMD_CHECKSUM_ALGORITHM": "every object has a CRC64NVME, and what the servers tell is compared",
    "S5CMD_LOG_LEVEL": "see log.level",
    "ENABLE_CHECKSUM_VERIFICATION": "every delivery is verified, always",
    "ENABLE_JSON_OUTPUT": "there is a run report for every pass",
    "JSON_OUTPUT_DIR": "run reports lie in state_dir/reports",
    "ENABLE_LOGGING": "the log goes to the journal, or to stderr",
    "LOG_DIR": "the log goes to the journal, or to stderr",
}


def _read_env(text: str) -> Old:
    old = Old()
    places = {**old.sides, "limits": old.limits, "job": old.job}
    seen: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(stripped)
        if match is None:
            old.notes.append(f"line {number}: it is no assignment, NAME=VALUE, and was left out")
            continue
        name, value = match[1], _unquoted(match[2], seen)
        seen[name] = value
        if name in _VARIABLES and _VARIABLE.search(value) and "SECRET" not in name:
            raise UsageError(
                f"{name}: {value!r} names a variable that this file does not set",
                hint="write into the old file what it stands for",
            )
        if name in _VARIABLES and value:
            where, key = _VARIABLES[name]
            places[where][key] = value
        elif value:
            old.notes.append(f"{name}: {_EXPLAINED.get(name, 'has no counterpart and was left out')}")
    _in_our_units(old)
    return old


def _in_our_units(old: Old) -> None:
    """What s5cmd counts otherwise."""
    destination = old.sides["destination"]
    if "endpoints" in destination:
        destination["endpoints"] = _urls(destination["endpoints"])
    if prefix := destination.pop("prefix", "").strip("/"):
        destination["prefix"] = f"{prefix}/"
    _as_folder(old, "destination")
    if match := re.match(r"([0-9]+)\s*([gG]?)", destination.pop("part_size", "")):
        destination["part_size"] = f"{match[1]}{'GiB' if match[2] else 'MiB'}"  # s5cmd's MB are MiB
    key = destination.pop("kms_key_id", None)
    if key is not None:
        destination["sse"] = {"kms_key_id": key}
    attempts, workers = old.job.pop("attempts", ""), old.limits.pop("workers", "")
    if attempts.isdigit():
        old.job["attempts"] = min(1000, int(attempts) + 1)  # s5cmd does not count the first
    if workers.isdigit() and int(workers):
        old.limits["workers"] = min(1024, int(workers))


def _unquoted(text: str, known: Mapping[str, str]) -> str:
    """A value as a shell would read it, without the comment behind it; `known` variables are replaced."""
    text = re.sub(r"(^|\s+)#[^'\"]*$", "", text.strip())

    def replaced(found: re.Match[str]) -> str:
        return known.get(found[1] or found[2], found[0])

    def piece(found: re.Match[str]) -> str:
        single, double, escaped, plain_text = found.groups()
        if single is not None or escaped is not None:
            return single if single is not None else escaped
        if double is not None:
            return re.sub(r"\\([$`\"\\])", r"\1", _VARIABLE.sub(replaced, double))
        return _VARIABLE.sub(replaced, plain_text)

    value, at = "", 0
    while found := _PIECE.match(text, at):
        value, at = value + piece(found), found.end()
    rest = text[at:]
    # Without quotes a shell would end a value at a blank; readers of such files did not.
    return value + rest if rest and not rest.lstrip().startswith((";", "#")) else value


# What comes out


def written(old: Old, name: str, *, with_secrets: bool) -> str:
    """The configuration as text, with a comment for all that needs a look."""
    job: dict[str, Any] = {"name": _JOB}
    for side in _SIDES:
        job[side] = _side(old, side, with_secrets=with_secrets)
    job |= old.job
    tree: dict[str, Any] = {"volumes": old.volumes or [_VOLUME], "jobs": [job]}
    if old.limits:
        tree["limits"] = old.limits
    if not old.volumes:
        old.notes.append(f"volumes: nothing was said of a folder to stage in; {_VOLUME} is a guess")
    head = [f"# Made from {name} by `s5jtd import`.  Try it with `s5jtd check` before it is used."]
    if old.notes:
        head += ["#", "# To look at:", *(f"#   {_one_line(note)}" for note in old.notes)]
    text = "\n".join(head) + "\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    _must_load(text, name)
    return text


def _must_load(text: str, name: str) -> None:
    """What comes out is read as the daemon would read it.

    Raises:
        UsageError: it would be refused.
    """
    with tempfile.TemporaryDirectory(prefix="s5jtd-import-") as folder:
        path = Path(folder) / "config.yaml"
        path.touch(0o600)
        path.write_text(text, "utf-8")
        try:
            load(path)
        except ConfigError as error:
            reasons = re.sub(
                rf"{re.escape(str(path))}:([0-9]+): ", lambda at: _shown(text, int(at[1])), str(error)
            )
            raise UsageError(
                f"{name}: it gives no configuration that works: {reasons}",
                hint="correct the old file, or write the new one from etc/config.yaml",
            ) from None


def _shown(text: str, number: int) -> str:
    """A line of what would have come out, for who cannot see it; never one of the keys."""
    line = text.splitlines()[number - 1].strip(" -")
    return "" if line.startswith(_KEYS) else f"`{line}`: "


def _side(old: Old, side: str, *, with_secrets: bool) -> dict[str, Any]:
    told = old.sides[side]
    if "directory" in told and "bucket" not in told:
        # The scripts' `s5cmd cp` follows links.
        return {"directory": told["directory"]} | ({"symlinks": "follow"} if side == "source" else {})
    if "directory" in told:
        old.notes.append(
            f"{side}: it names a bucket and the folder {told['directory']}; the bucket was taken"
        )
    taken = ("bucket", "prefix", "region", "endpoints", "storage_class", "sse", "part_size")
    made = {key: told[key] for key in taken if told.get(key)}
    if any(url.startswith("https:") for url in told.get("endpoints", ())):
        old.notes.append(
            f"{side}: certificates are verified here; one of your own goes into tls: {{ca_bundle: FILE}}"
        )
    credentials = _credentials(old, side, told, with_secrets=with_secrets)
    return made | ({"credentials": credentials} if credentials else {})


def _credentials(
    old: Old, side: str, told: Mapping[str, str], *, with_secrets: bool
) -> dict[str, str] | None:
    secrets = {key: told[key] for key in _KEYS if key in told}
    if {"access_key_id", "secret_access_key"} <= secrets.keys():
        if with_secrets:
            old.notes.append(f"{side}: its keys stand in this file; let nobody else read it: chmod 0640")
            return secrets
        reference = f"s5jtd-{side}"
        old.notes.append(
            f"{side}: its keys were not copied.  Put them into a file like ~/.aws/credentials and hand it to"
            f" the unit: LoadCredential={reference}:FILE; or import again with --with-secrets"
        )
        return {"systemd": reference}
    if secrets:
        old.notes.append(f"{side}: it has one half of a key pair only; nothing was made of it")
    return {"profile": told["profile"]} if "profile" in told else None


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)
