"""A volume and a ledger that disagree: no copy goes before its delivery is known."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s5jtd.errors import EndpointDown, VolumeFailed
from s5jtd.ledger.adoption import Fate, _Known, fate
from s5jtd.ledger.rows import Chunk, Delivered, Item, Returned, Staged
from s5jtd.ledger.states import ChunkState, State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.verify import verify_all
from s5jtd.model import Digests, Evidence, Listed
from s5jtd.problems import Problems
from s5jtd.stages import records, recover
from s5jtd.stages.pull import Pull
from s5jtd.stages.recover import Recover
from s5jtd.volumes import chunks
from s5jtd.volumes.chunks import ChunkFolder, file_name
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.volume import Volume

KEYS = [b"key %02d" % n for n in range(12)]


def bytes_of(key: bytes, etag: str = "e") -> bytes:
    return hashlib.shake_128(key + etag.encode()).digest(50 + len(key))


def nobody_answers() -> None:
    """The source is away, as it well may be when an appliance recovers."""
    raise EndpointDown("http://s")


class Site:
    """A state folder that can lose its ledger, and a volume that does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "volume").mkdir()
        self.problems = Problems()
        self.lives = 0
        self.begin()

    def begin(self) -> None:
        """A new ledger, and the volume attached to it; nothing is recovered yet."""
        self.lives += 1
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.folder / f"ledger-{self.lives}.db")
        self.volume = Volume(self.folder / "volume", "vol1", 0, load_key(self.folder))
        stamp = self.volume.attach(None, lambda _uuid: 0)
        self.volume.ledger_id = self.ledger.enrol_volume(stamp.uuid, "vol1", str(self.volume.path), 1).id
        job_id = self.ledger.enrol_job("archive", "s3://a/", "s3://b/")
        source = SimpleNamespace(endpoints=SimpleNamespace(lease=nobody_answers))
        config = SimpleNamespace(source=SimpleNamespace(directory="/data/hot"), resume_above=1 << 30)
        self.job: Any = SimpleNamespace(id=job_id, name="archive", config=config, source=source)

    def close(self) -> None:
        self.ledger.close()
        self.volume.detach()

    def die(self) -> None:
        """A cut: the ledger stays as it is, and the next life finds both."""
        self.close()
        self.open()

    def lose_the_ledger(self) -> None:
        self.close()
        self.begin()

    def see(self, *keys: bytes, etag: str = "e", modified_ms: int = 1) -> None:
        listed = [Listed(key, len(bytes_of(key, etag)), etag, modified_ms) for key in sorted(keys)]
        fresh = self.ledger.views.fresh(self.job.id, listed, ascending=True)
        self.ledger.admit(self.job.id, self.ledger.begin_pass(self.job.id), fresh, {}, {})

    def stage(self, *keys: bytes, etag: str = "e", modified_ms: int = 1) -> Chunk:
        """Pull objects onto the volume as the daemon does: promise, bytes, seal, commit."""
        self.see(*keys, etag=etag, modified_ms=modified_ms)
        items = [item for item in self.ledger.views.candidates(self.job.id, 1000) if item.key in keys]
        self.ledger.plan(self.job.id, self.volume.ledger_id, items, 0)
        chunk = self.ledger.take_pull(self.volume.ledger_id)
        assert chunk is not None
        staged = [
            Staged(item, Digests(item.size, "AAAAAAAAAAA="), Evidence.ETAG, None)
            for item in self.ledger.views.pulling(chunk.id)
        ]
        with ChunkFolder(self.volume.fd, chunk.name, create=True) as folder:
            records.write_promise(folder, self.job, chunk, self.volume, items)
            for item in items:
                path = self.path(chunk.name, file_name(item.id))
                path.write_bytes(bytes_of(item.key, etag))
            records.write_seal(folder, self.job, chunk, self.volume, staged)
        self.ledger.settle_pull(chunk, staged, [], "http://s")
        return chunk

    def deliver(self) -> None:
        """Everything that is staged reaches the destination; its files stay."""
        while taken := self.ledger.take_push(self.volume.ledger_id, [self.job.id]):
            chunk, items = taken
            delivered = [Delivered(item, "x", Evidence.ETAG) for item in items]
            self.ledger.settle_push(chunk, delivered, [], "http://d")

    def park(self) -> None:
        """The destination refuses everything that is staged."""
        while taken := self.ledger.take_push(self.volume.ledger_id, [self.job.id]):
            chunk, items = taken
            refused = [Returned(item, State.PARKED, "object_refused", "no") for item in items]
            self.ledger.settle_push(chunk, [], refused, "http://d")

    def recover(self, *, again: bool = False) -> None:
        jobs = {self.job.id: self.job}

        def puller(volume: Volume) -> Pull:
            nothing: Any = None
            return Pull(
                1, volume, jobs=lambda: jobs, ledger=self.ledger, pool=nothing, engine=nothing,
                hashing=nothing, unfinished=nothing, meter=nothing, problems=self.problems,
                bell=nothing, tuner=nothing,
                halted=lambda _job: False,
            )  # fmt: skip

        recover = Recover(self.ledger, self.problems, lambda: jobs, puller)
        recover.look_again(self.volume) if again else recover(self.volume, lambda: None)

    def path(self, chunk: str, name: str) -> Path:
        return self.volume.path / "s5jtd" / chunk / "data" / name

    def folders(self) -> list[str]:
        return list(chunks.chunk_names(self.volume.fd))

    def states(self) -> dict[bytes, str]:
        rows = self.ledger.views.objects(self.job.id, state=None, prefix=b"", after=b"", limit=1000)
        return {row["key"]: State(row["state"]).word for row in rows}

    def proven(self, etag: str = "e") -> list[bytes]:
        """The keys that the ledger says are staged, each after a look at the bytes in its file."""
        keys = []
        for state in (ChunkState.SEALED, ChunkState.RESTING):
            for chunk in self.ledger.views.chunks(self.volume.ledger_id, state):
                for item, _ in self.ledger.views.aboard(chunk.id, State.STAGED):
                    there = self.path(chunk.name, file_name(item.id)).read_bytes()
                    assert there == bytes_of(item.key, etag), f"{item.key!r} has another object's bytes"
                    keys.append(item.key)
        return sorted(keys)

    def copies(self) -> set[bytes]:
        """What bytes there are on the volume, whoever vouches for them."""
        return {path.read_bytes() for path in self.volume.path.glob("s5jtd/*/data/*.obj")}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    assert [check for check in verify_all(site.ledger.database.path) if check.findings] == []
    site.close()


def test_a_ledger_that_is_gone_is_filled_from_the_volume_and_no_file_moves(site: Site) -> None:
    chunk = site.stage(*KEYS)
    site.lose_the_ledger()

    site.recover()

    assert site.proven() == KEYS
    assert site.folders() == [chunk.name]


def test_ids_that_a_new_ledger_gave_to_other_keys_cost_no_copy(site: Site) -> None:
    """The new ledger listed the source before the volume came, and the source has lost what is on it."""
    old = site.stage(*KEYS)
    site.lose_the_ledger()
    site.see(*[b"another %02d" % n for n in range(30)])

    site.recover()

    assert site.proven() == KEYS
    assert len(site.folders()) == 1
    assert site.folders() != [old.name]
    assert site.copies() == {bytes_of(key) for key in KEYS}


def test_ids_that_changed_places_among_the_chunk_s_own_keys_cost_no_copy(site: Site) -> None:
    site.stage(*KEYS)
    site.lose_the_ledger()
    site.see(*KEYS[1:], b"a key that sorts first")

    site.recover()

    assert site.proven() == KEYS
    assert site.states()[b"a key that sorts first"] == "seen"


@pytest.mark.parametrize("way", ["in place", "moved over"])
def test_a_cut_at_any_moment_of_the_taking_in_costs_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Each durable step in turn is the last one done; the next life takes in all there is, rightly named."""
    keys = KEYS[:6]
    steps = 0
    while True:
        (tmp_path / f"{steps}").mkdir()
        site = Site(tmp_path / f"{steps}")
        site.stage(*keys)
        site.lose_the_ledger()
        if way == "moved over":
            site.see(*[b"another %02d" % n for n in range(3)], *keys[3:5])
        if not cut_after(site, monkeypatch, steps):
            break
        assert site.copies() == {bytes_of(key) for key in keys}, "a copy went before its delivery was known"
        site.die()
        site.recover()
        assert site.proven() == keys, f"cut after {steps} steps"
        assert [check for check in verify_all(site.ledger.database.path) if check.findings] == []
        site.close()
        steps += 1

    assert site.proven() == keys
    assert len(site.folders()) == 1
    assert steps >= (12 if way == "moved over" else 2)
    site.close()


def cut_after(site: Site, monkeypatch: pytest.MonkeyPatch, steps: int) -> bool:
    """Recover, and be cut after so many steps; False where it came to its end before."""
    left = [steps]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise InterruptedError("the power is gone")
            left[0] -= 1
            return function(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "adopt", counted(site.ledger.adopt))
        patch.setattr(site.ledger, "settle_pull", counted(site.ledger.settle_pull))
        patch.setattr(recover, "ChunkFolder", counted(ChunkFolder))
        patch.setattr(records, "write_promise", counted(records.write_promise))
        patch.setattr(records, "write_seal", counted(records.write_seal))
        patch.setattr(os, "rename", counted(os.rename))
        patch.setattr(site.volume, "sync", counted(site.volume.sync))
        patch.setattr(chunks, "remove", counted(chunks.remove))
        try:
            site.recover()
        except (InterruptedError, VolumeFailed):
            return True
    return False


def test_what_is_delivered_already_is_not_taken_in_and_its_folder_goes(site: Site) -> None:
    site.stage(*KEYS)
    site.deliver()
    (folder,) = site.folders()
    row = site.ledger.views.chunks(site.volume.ledger_id, ChunkState.RESTING)[0]
    items = [item for item, _ in site.ledger.views.aboard(row.id, State.DELIVERED)]
    site.ledger.released(row, items, folder_gone=True)  # the unlinking was not synced, and a cut undid it

    site.recover()

    assert site.folders() == []
    assert set(site.states().values()) == {"delivered"}
    assert folder


def test_what_cannot_be_decided_stays_while_the_rest_is_taken_in(site: Site) -> None:
    """One key is being pulled elsewhere just now: that pull may fail, so the copy here must not go."""
    old = site.stage(*KEYS)
    site.lose_the_ledger()
    site.see(KEYS[0])
    elsewhere = site.ledger.enrol_volume("uuid-2", "vol2", "/mnt/2", 1).id
    items = site.ledger.views.candidates(site.job.id, 10)
    site.ledger.plan(site.job.id, elsewhere, items, 0)

    site.recover()

    assert site.proven() == KEYS[1:]
    assert site.states()[KEYS[0]] == "pulling"
    assert old.name in site.folders()
    assert site.copies() == {bytes_of(key) for key in KEYS}

    chunk = site.ledger.take_pull(elsewhere)
    assert chunk is not None
    site.ledger.unplan(chunk)
    site.recover()

    assert site.proven() == KEYS
    assert len(site.folders()) == 2


def test_what_could_not_be_decided_is_once_what_was_in_flight_is_delivered(site: Site) -> None:
    """The folder came back with the power, while its object is on its way from another one."""
    first = site.stage(b"a")
    shutil.copytree(site.volume.path / "s5jtd" / first.name, site.folder / "kept")
    site.lose_the_ledger()
    shutil.rmtree(site.volume.path / "s5jtd" / first.name)
    second = site.stage(b"a")
    (site.folder / "kept").rename(site.volume.path / "s5jtd" / first.name)
    site.recover()
    assert sorted(site.folders()) == sorted([first.name, second.name])

    site.deliver()
    site.recover(again=True)

    assert site.folders() == [second.name]


def test_a_version_that_a_newer_delivery_overtook_is_not_sent_after_it(site: Site) -> None:
    site.stage(KEYS[0], etag="old", modified_ms=1)
    site.lose_the_ledger()
    chunk = site.stage(KEYS[0], etag="new", modified_ms=2)

    site.recover()
    assert site.copies() == {bytes_of(KEYS[0], "old"), bytes_of(KEYS[0], "new")}, (
        "not delivered yet: both stay"
    )
    assert site.proven("new") == [KEYS[0]]

    site.deliver()
    site.recover()
    assert site.folders() == [chunk.name]


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_two_versions_on_the_volume_only_the_newer_is_sent_whichever_is_found_first(
    site: Site, newer_first: bool
) -> None:
    """The older one was parked when the source was overwritten; then the ledger was lost."""
    sealed = site.stage(*KEYS[:2], etag="old", modified_ms=1)
    site.park()
    later = site.stage(KEYS[0], etag="new", modified_ms=2)
    site.lose_the_ledger()
    names = sorted(["0" * 16, "1" * 16], reverse=newer_first)
    for chunk, name in zip((sealed, later), names, strict=True):
        (site.volume.path / "s5jtd" / chunk.name).rename(site.volume.path / "s5jtd" / name)

    site.recover()

    taken = (
        site.ledger.take_push(site.volume.ledger_id, [site.job.id]),
        site.ledger.take_push(site.volume.ledger_id, [site.job.id]),
    )
    due = {item.key: item.etag for one in taken if one for item in one[1]}
    assert due == {KEYS[0]: "new", KEYS[1]: "old"}


def test_a_parked_version_that_was_overtaken_leaves_its_chunk_while_others_wait_in_it(site: Site) -> None:
    """With a lost ledger nobody could tell that it is not to be sent, once the newer one is delivered."""
    parked = site.stage(*KEYS[:2], etag="old", modified_ms=1)
    site.park()
    newer = site.stage(KEYS[0], etag="new", modified_ms=2)
    site.recover(again=True)
    assert site.copies() == {bytes_of(KEYS[1], "old"), bytes_of(KEYS[0], "new")}
    site.deliver()
    shutil.rmtree(site.volume.path / "s5jtd" / newer.name)  # as it is released
    site.lose_the_ledger()

    site.recover()

    assert site.states() == {KEYS[1]: "staged"}
    assert site.folders() == [parked.name]


def test_a_chunk_that_was_put_off_keeps_what_it_has_while_its_volume_is_in_use(site: Site) -> None:
    """Half of a large object waits in it for its turn, and nobody holds its folder meanwhile."""
    site.see(b"large")
    site.ledger.plan(site.job.id, site.volume.ledger_id, site.ledger.views.candidates(site.job.id, 1), 0)
    chunk = site.ledger.take_pull(site.volume.ledger_id)
    assert chunk is not None
    ChunkFolder(site.volume.fd, chunk.name, create=True).close()
    part = site.path(chunk.name, "1.part")
    part.write_bytes(b"half")

    site.recover(again=True)

    assert part.exists()


def test_an_older_ledger_takes_in_the_newer_version_and_keeps_the_old_delivery(site: Site) -> None:
    """The ledger was put back to an older copy: the volume knows better what the source held last."""
    site.stage(KEYS[0], etag="new", modified_ms=2)
    site.lose_the_ledger()
    site.see(KEYS[0], etag="old", modified_ms=1)
    pass_id = site.ledger.begin_pass(site.job.id)
    site.ledger.admit(
        site.job.id, pass_id, [Listed(KEYS[0], len(bytes_of(KEYS[0], "old")), "old", 1)],
        {KEYS[0]: ("old", Evidence.ETAG)}, {},
    )  # fmt: skip
    assert site.states() == {KEYS[0]: "delivered"}

    site.recover()

    assert site.proven("new") == [KEYS[0]]
    story = site.ledger.views.explain(site.job.id, KEYS[0])
    assert story is not None
    assert [past["etag"] for past in story["past"]] == ["old"]


def test_a_chunk_whose_folder_is_gone_travels_again_and_takes_the_volume_nowhere(site: Site) -> None:
    """An older ledger counts on a chunk that was released since."""
    chunk = site.stage(*KEYS)
    chunks.remove(site.volume.fd, chunk.name)

    site.recover()

    assert set(site.states().values()) == {"seen"}
    assert site.ledger.views.staged_bytes().get(site.volume.ledger_id, 0) == 0


def test_an_older_ledger_does_not_take_a_lost_chunk_for_the_better_copy(site: Site) -> None:
    """It believes the objects to be in a chunk that is gone; they are in another, sealed since."""
    first = site.stage(*KEYS)
    site.volume.path.joinpath("s5jtd", first.name).rename(site.volume.path / "s5jtd" / ("f" * 16))

    site.recover()

    assert site.proven() == KEYS


def test_a_seal_that_was_damaged_costs_no_copy_and_a_person_is_told(site: Site) -> None:
    chunk = site.stage(*KEYS)
    site.lose_the_ledger()
    seal = site.volume.path / "s5jtd" / chunk.name / "sealed.json"
    seal.write_bytes(seal.read_bytes().replace(b"etag", b"gate", 1))

    site.recover()

    assert site.folders() == [chunk.name]
    assert site.copies() == {bytes_of(key) for key in KEYS}
    assert [problem.code for problem in site.problems.now()] == ["chunk_unreadable"]


def test_a_folder_that_was_never_sealed_goes(site: Site) -> None:
    chunk = site.stage(*KEYS)
    site.lose_the_ledger()
    (site.volume.path / "s5jtd" / chunk.name / "sealed.json").unlink()

    site.recover()

    assert site.folders() == []


def test_a_file_that_lost_its_end_is_not_taken_for_the_object(site: Site) -> None:
    chunk = site.stage(*KEYS)
    site.lose_the_ledger()
    first = next(iter(sorted((site.volume.path / "s5jtd" / chunk.name / "data").iterdir())))
    first.write_bytes(first.read_bytes()[:-1])

    site.recover()

    assert len(site.proven()) == len(KEYS) - 1


ITEM = Item(7, b"k", 10, "e", 5, 0)


@pytest.mark.parametrize(
    ("state", "known", "aboard", "past", "wanted"),
    [
        (None, None, False, False, Fate.TAKE),
        (State.SEEN, ITEM, False, False, Fate.TAKE),
        (State.GONE, ITEM, False, False, Fate.TAKE),
        (State.PARKED, ITEM, False, False, Fate.TAKE),
        (State.PARKED, ITEM, True, False, Fate.KEEP),
        (State.PULLING, ITEM, False, False, Fate.KEEP),
        (State.STAGED, ITEM, True, False, Fate.KEEP),
        (State.PUSHING, ITEM, True, False, Fate.KEEP),
        (State.DELIVERED, ITEM, False, False, Fate.DROP),
        (State.DELIVERED, ITEM, True, False, Fate.DROP),
        (State.SEEN, replace(ITEM, etag="f", modified_ms=6), False, False, Fate.KEEP),
        (State.SEEN, replace(ITEM, etag="f", modified_ms=6), False, True, Fate.DROP),
        (State.SEEN, replace(ITEM, etag="f", modified_ms=4), False, False, Fate.TAKE),
        (State.STAGED, replace(ITEM, etag="f", modified_ms=4), True, False, Fate.TAKE),
        (State.PARKED, replace(ITEM, etag="f", modified_ms=4), True, False, Fate.TAKE),
        (State.PUSHING, replace(ITEM, etag="f", modified_ms=4), True, False, Fate.KEEP),
        (State.STAGED, replace(ITEM, etag="f", modified_ms=6), True, False, Fate.KEEP),
        (State.DELIVERED, replace(ITEM, etag="f", modified_ms=6), False, False, Fate.DROP),
        (State.DELIVERED, replace(ITEM, etag="f", modified_ms=5), False, False, Fate.KEEP),
        (State.DELIVERED, replace(ITEM, etag="f", modified_ms=4), False, False, Fate.TAKE),
        (State.DELIVERED, replace(ITEM, etag="f", modified_ms=4), True, False, Fate.KEEP),
    ],
)
def test_a_copy_goes_only_when_its_version_or_a_newer_one_is_delivered(
    state: State | None, known: Item | None, aboard: bool, past: bool, wanted: Fate
) -> None:
    row = None if known is None or state is None else _Known(known, state, 1 if aboard else None)

    assert fate(row, past, ITEM) is wanted


def test_without_an_etag_the_date_tells_the_version() -> None:
    found = replace(ITEM, etag="")

    assert fate(_Known(found, State.DELIVERED, None), False, found) is Fate.DROP
    later = _Known(replace(found, modified_ms=9), State.SEEN, None)
    assert fate(later, False, found) is Fate.KEEP
