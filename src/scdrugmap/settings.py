"""User settings, from the environment (prefix ``SCDRUGMAP_``) or set in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import ByteSize, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of scdrugmap.

    Each field can be set by an environment variable (``SCDRUGMAP_CACHE_DIR``, ``SCDRUGMAP_OFFLINE`` ...)
    before the import, or as an attribute afterwards.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.settings.n_jobs
    1
    """

    model_config = SettingsConfigDict(env_prefix="SCDRUGMAP_", validate_assignment=True, extra="ignore")

    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("scdrugmap")),
        description="Where downloads and cached embeddings are kept.",
    )
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1", "mps".')
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Arithmetic of the networks; auto is bfloat16 on CUDA and float32 elsewhere."
    )
    n_jobs: int = Field(1, description="Parallel processes of grids; -1 for all cores.")
    offline: bool = Field(False, description="Never open a network connection.")
    mirror: str | None = Field(None, description="Prefix that is tried before the registered addresses.")
    download_rate: int = Field(1024, ge=0, description="Bytes per second below which an address is given up.")
    download_window: float = Field(30.0, gt=0, description="Seconds over which that rate is looked at.")
    embedding_cache: bool = Field(True, description="Reuse embeddings of the same cells, checkpoint and options.")
    embedding_cache_size: ByteSize = Field(
        ByteSize(20_000_000_000),
        description='Most bytes of cached embeddings, such as "20 GB"; those not used for longest are dropped.',
    )
    seed: int = Field(0, ge=0, description="Seed where a call passes rng=None.")
    verbosity: Literal["error", "warning", "info", "debug"] = Field("warning", description="Level of the log.")


settings = Settings()  # type: ignore[call-arg]
