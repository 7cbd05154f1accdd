"""What rank 0 does for all ranks fails on all of them, with its message and exit status."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.exit_status import STORAGE
from pretrain.files import writes_user_file
from pretrain.run.agreement import on_rank_0


def test_storage_that_is_away_is_no_users_error(tmp_path: Path) -> None:
    """The status makes a launcher start the run again."""

    def stale() -> None:
        with writes_user_file(tmp_path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(tmp_path))

    with pytest.raises(UserError, match="Stale file handle") as raised:
        on_rank_0("locking the run's folder", stale)
    assert raised.value.status == STORAGE
