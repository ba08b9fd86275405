"""Make pose/demo/skeletons.npz: the poses that the demo data draws, in a compact form.

The source is BodyPose_Dataset.csv inside the wheel of `pose-classification-kit` 1.1.5 (MIT, see
pose/demo/NOTICE). The package itself cannot be installed beside current numpy, so the CSV is read
straight out of the wheel:

    pip download --no-deps pose-classification-kit==1.1.5
    python scripts/make_demo_skeletons.py pose_classification_kit-1.1.5-py3-none-any.whl

The same wheel gives the same file, byte for byte.
"""

import csv
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

CSV_NAME = "pose_classification_kit/datasets/BodyPose_Dataset.csv"
NUM_KEYPOINTS = 25
TARGET = Path(__file__).resolve().parents[1] / "pose" / "demo" / "skeletons.npz"


def read_skeletons(wheel: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read all skeletons out of the wheel, in the order of the CSV.

    Returns:
        keypoints: (N, 25, 2) float16, x to the viewer's right and y up, in body lengths; (0, 0) is
            a keypoint that was not found. Rounding to float16 moves a keypoint by 0.00025 at most,
            a twentieth of a pixel on an image of 256 px.
        labels: (N,) uint8, index into `names`.
        names: (C,) text, the names of the classes in sorted order.
    """
    with zipfile.ZipFile(wheel) as archive, archive.open(CSV_NAME) as raw:
        rows = list(csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline="")))
    names = sorted({row["label"] for row in rows})
    labels = np.array([names.index(row["label"]) for row in rows], dtype=np.uint8)
    keypoints = np.array(
        [[(row[f"x{k}"], row[f"y{k}"]) for k in range(NUM_KEYPOINTS)] for row in rows],
        dtype=np.float64,
    )
    return keypoints.astype(np.float16), labels, np.array(names)


def main() -> None:
    """Command line: the path of the wheel."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} WHEEL (see the head of this script)")
    keypoints, labels, names = read_skeletons(Path(sys.argv[1]))
    np.savez_compressed(TARGET, keypoints=keypoints, labels=labels, names=names)
    print(
        f"{TARGET.name}: {len(labels)} skeletons, {len(names)} classes, "
        f"{TARGET.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
