"""release: give a volume the bytes of delivered objects back; their delivery is committed by then."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from s5jtd.errors import Busy
from s5jtd.ledger.rows import Chunk
from s5jtd.ledger.states import ChunkState, State
from s5jtd.ledger.store import Ledger
from s5jtd.pool import Pool
from s5jtd.volumes import chunks
from s5jtd.volumes.chunks import ChunkFolder, file_name
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.volume import Volume, VolumeState
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)


class Release:
    """The one releaser of one volume."""

    idle_seconds = 2.0
    quiet_seconds_max = 300.0

    def __init__(self, volume: Volume, ledger: Ledger, pool: Pool, bell: Bell) -> None:
        """It works on one volume and knows no job."""
        self.name = f"release {volume.name}"
        self.volume = volume
        self._ledger = ledger
        self._pool = pool
        self._bell = bell

    def step(self, beat: Callable[[], None]) -> bool:
        """Unlink the delivered files of one chunk, and its folder when nothing is left in it."""
        volume = self.volume
        with volume.use():
            if not volume.state.gives_pushes or volume.state is VolumeState.READONLY:
                return False
            chunk = self._ledger.views.releasable(volume.ledger_id)
            if chunk is None:
                return False
            try:
                self._release(chunk)
            except Busy:
                return False
            except OSError as error:
                self._pool.fail(volume, volume_error(error, str(volume.path)))
                return False
        beat()
        self._bell.ring()
        return True

    def _release(self, chunk: Chunk) -> None:
        items = [item for item, _ in self._ledger.views.aboard(chunk.id, State.DELIVERED)]
        over = chunk.state is ChunkState.RESTING and self._ledger.views.all_delivered(chunk.id)
        if over:
            chunks.remove(self.volume.fd, chunk.name)
        else:
            with ChunkFolder(self.volume.fd, chunk.name) as folder:
                folder.unlink(file_name(item.id) for item in items)
        self._ledger.released(chunk, items, folder_gone=over)
