"""The sources by their names."""

from core.errors import UserError
from data.config import DataConfig
from data.sources.base import Source
from data.sources.digits import DigitsSource
from data.sources.folder import FolderSource


def open_source(config: DataConfig) -> Source:
    """Open the configured source.

    Raises:
        UserError: `data.path` is missing, or there is nothing of the kind.

    """
    if config.source == "digits":
        return DigitsSource()
    if config.source not in ("folder", "parquet"):
        from data.sources.torchvision_sets import TorchvisionSource

        return TorchvisionSource(config.source, config.path)
    if config.path is None:
        raise UserError("data.path is not set: name the folder of your images with --set data.path=FOLDER")
    if config.source == "parquet":
        from data.sources.parquet import ParquetSource

        return ParquetSource(config.path)
    return FolderSource(config.path)
