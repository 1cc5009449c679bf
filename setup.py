"""Packaging of lrreid_ext. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

EXPORT = ["torch>=2.7", "onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]
HUB = ["huggingface-hub>=0.26"]
SPANDREL = ["spandrel>=0.4"]

setup(
    name="lrreid-ext",
    version="0.1.0",
    description="Low- and cross-resolution person re-identification on fast-reid",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["lrreid_ext", "lrreid_ext.*"]),
    package_data={"lrreid_ext.report": ["templates/*"]},
    entry_points={"console_scripts": ["lrreid = lrreid_ext.cli:main"]},
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "timm>=1.0.12",
        "numpy>=1.26",
        "pillow>=10",
        "pydantic>=2.7",
        "safetensors>=0.4",
        "torchmetrics>=1.4",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "scipy>=1.10",
        "jinja2>=3.1",
        # What fastreid 1.4.0 imports. It can't be named itself: its pins would downgrade torch.
        "faiss-cpu>=1.7.4",
        "opencv-python-headless>=4.8",
        "scikit-learn>=1.3",
        "tabulate>=0.9",
        "tensorboard>=2.15",
        "termcolor>=2.3",
        "yacs>=0.1.8",
    ],
    extras_require={
        # The MATLAB file that CUHK03 comes in.
        "cuhk03": ["h5py>=3.8"],
        # Galleries in Milvus, embedded in a file or on a server.
        "milvus": ["pymilvus>=3.0", "milvus-lite>=3.0"],
        # lrreid export --to onnx; its exporter, and the runtime that the file is checked with.
        "export": EXPORT,
        # Models of the Hugging Face hub, and uploading to it.
        "hub": HUB,
        # SR.NAME Spandrel: other people's super-resolution networks.
        "spandrel": SPANDREL,
        # fast-reid's Cython code, compiled to be measured beside ours; exported files.
        "bench": ["Cython>=3", "setuptools", *EXPORT],
        "dev": [
            *EXPORT,
            *HUB,
            *SPANDREL,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            # The report in a browser; chromium and chromium-driver are the system's.
            "selenium>=4.20",
            "ruff>=0.6",
            "import-linter>=2.1",
            "mypy>=1.11",
            "h5py>=3.8",
            "pymilvus>=3.0",
            "milvus-lite>=3.0",
            "types-tabulate",
            "types-tqdm",
            "types-PyYAML",
        ],
    },
)
