"""Machine types by name, and how many GPUs they have; the nearest one to a name that is none."""

from __future__ import annotations

from stagewright.text import most_like

_SIZES = "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"
_CPU = {
    "m4": "xlarge 2xlarge 4xlarge 10xlarge 16xlarge",
    "m5": "large xlarge 2xlarge 4xlarge 12xlarge 24xlarge",
    "c4": "xlarge 2xlarge 4xlarge 8xlarge",
    "c5": "xlarge 2xlarge 4xlarge 9xlarge 18xlarge",
    "c5n": "xlarge 2xlarge 4xlarge 9xlarge 18xlarge",
    "t3": "medium large xlarge 2xlarge",
    "r5": _SIZES,
    "r5d": _SIZES,
    "m6i": f"{_SIZES} 32xlarge",
    "c6i": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge",
    "r6i": f"{_SIZES} 32xlarge",
    "m7i": f"{_SIZES} 48xlarge",
    "c7i": f"{_SIZES} 48xlarge",
    "r7i": f"{_SIZES} 48xlarge",
    "m8i": f"{_SIZES} 32xlarge 48xlarge 96xlarge",
    "c8i": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge 96xlarge",
    "r8i": f"{_SIZES} 32xlarge 48xlarge 96xlarge",
    "m7i-flex": "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge",
    "c7i-flex": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge",
    "m8i-flex": "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge",
    "c8i-flex": "xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge",
    "r8i-flex": "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge",
}
_G5 = {
    "xlarge": 1,
    "2xlarge": 1,
    "4xlarge": 1,
    "8xlarge": 1,
    "16xlarge": 1,
    "12xlarge": 4,
    "24xlarge": 4,
    "48xlarge": 8,
}
_GPU: dict[str, dict[str, int | None]] = {
    "g4dn": {"xlarge": 1, "2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "16xlarge": 1, "12xlarge": 4},
    "g5": {**_G5},
    "g6": {**_G5},
    "g6e": {**_G5},
    "g7": dict.fromkeys(("2xlarge", "4xlarge", "8xlarge", "12xlarge", "24xlarge", "48xlarge")),
    "g7e": {"2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 2, "24xlarge": 4, "48xlarge": 8},
    "p2": {"xlarge": 1, "8xlarge": 8, "16xlarge": 16},
    "p3": {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"4xlarge": 1, "48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
    "p6-b300": {"48xlarge": 8},
    "p6e-gb200": {"36xlarge": 4},
}
SAGEMAKER: dict[str, int | None] = {
    **{f"ml.{family}.{size}": 0 for family, sizes in _CPU.items() for size in sizes.split()},
    **{f"ml.{family}.{size}": gpus for family, sizes in _GPU.items() for size, gpus in sizes.items()},
}
"""SageMaker's types for training, and their number of GPUs; None: not known here. Those without a processor that torch can use
(Trainium) are left out. A test compares them with the list of AWS's own library."""
USUAL = {0: "ml.m7i.4xlarge", 1: "ml.g6.2xlarge", 2: "ml.g7e.12xlarge", 4: "ml.g6.12xlarge", 8: "ml.p5.48xlarge"}
"""The type for a number of GPUs, where none is given."""

SKYPILOT_GPUS = (
    *("A10", "A10G", "A100", "A100-80GB", "B200", "B300", "GB200", "GH200", "H100", "H200", "K80", "L4", "L40", "L40S"),
    *(
        "P100",
        "P4",
        "RTX3090",
        "RTX4090",
        "RTX5090",
        "RTX6000-Ada",
        "RTXA6000",
        "RTXPRO6000",
        "T4",
        "V100",
        "V100-32GB",
    ),
)
"""SkyPilot's names of common GPUs."""


def nearest_with(instance: str, gpus: int) -> str:
    """Returns the type of SageMaker with ``gpus`` GPUs that is most like ``instance``: of its family, if that has one."""
    fitting = [name for name, count in SAGEMAKER.items() if count == gpus]
    family = [name for name in fitting if name.split(".")[1] == instance.split(".")[1]]
    return most_like(instance, family or fitting)


def gpu_counts() -> list[int]:
    """Returns the numbers of GPUs that types of SageMaker have, ascending."""
    return sorted({count for count in SAGEMAKER.values() if count is not None})
