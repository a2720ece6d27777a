"""The Bundle: a trained model in one folder, with class names, preprocessing, golden samples and a card.

Convention: what a Bundle answers is checked against what it answered when it was saved. Loading hashes every file and
replays the golden samples through the whole chain (decode, crop, resize, normalise, network, in float32), and refuses
to run where the answers have drifted by more than :data:`TOLERANCE`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import batched
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
