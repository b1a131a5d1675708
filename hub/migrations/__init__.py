"""The schema of hub.db, as alembic revisions: files in versions/, named and numbered in order. Forward only.

To change the schema: add versions/v<next>_<what>.py, set HEAD, and change the Struct of the table's rows alike, in
hub/store.py or hub/accounts.py (tests compare them). Released revisions never change. The steps of an upgrade run in
one transaction (see hub/database.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

FOLDER = Path(__file__).parent
HEAD = "0003"
"""The newest revision, said here so that a database which has it is opened without alembic (200 ms, 10 MiB)."""


def upgrade(connection: Connection) -> None:
    """Brings the database to HEAD, in the caller's transaction."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # before the import, which already tells ten lines
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
