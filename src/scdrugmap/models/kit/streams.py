"""Random streams of published pipelines, which run over the cells in file order."""

from __future__ import annotations

import numpy as np

from scdrugmap._errors import InputError


class FileOrderStream:
    """NumPy's legacy generator, drawn from cell after cell.

    Parameters
    ----------
    seed
        Seed of the generator.

    Examples
    --------
    >>> import numpy as np
    >>> stream = FileOrderStream(0)
    >>> stream.advance(np.arange(3))
    >>> round(float(stream.values.random_sample()), 4)
    0.5488
    """

    values: np.random.RandomState

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """Go back to the first cell."""
        self.next_row = 0
        self.values = np.random.RandomState(self.seed)

    def advance(self, rows: np.ndarray) -> None:
        """Go on with these rows of the data set.

        Raises
        ------
        InputError
            If they neither follow the last ones nor start at the first.
        """
        if len(rows) and rows[0] == 0:
            self.restart()
        if not np.array_equal(rows, np.arange(self.next_row, self.next_row + len(rows))):
            raise InputError(
                "draws", "stream", "all cells in file order", "use draws='content' to embed cells in any order."
            )
        self.next_row += len(rows)
