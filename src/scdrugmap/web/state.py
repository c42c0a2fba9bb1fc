"""What every part of one process shares: settings, database and queues."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from sqlalchemy import Engine

from scdrugmap.web.config import ServerSettings
from scdrugmap.web.database import connect
from scdrugmap.web.queues import Queues


@dataclass
class Server:
    """One process of a server.

    Parameters
    ----------
    settings
        What the owner decided.
    """

    settings: ServerSettings
    notes: dict[str, object] = field(default_factory=dict)

    @cached_property
    def engine(self) -> Engine:
        """The database."""
        return connect(self.settings.database_url)

    @cached_property
    def queues(self) -> Queues:
        """The queues of checks and jobs, in the same database."""
        return Queues(self.settings.database_url)
