"""Where endpoints of this project keep samples of their requests."""

import os
from pathlib import Path

from pipelines.settings import OUTPUTS
from serving.config import SAMPLES_DIR

SAMPLES = Path(os.environ.get(SAMPLES_DIR) or OUTPUTS / "samples")
