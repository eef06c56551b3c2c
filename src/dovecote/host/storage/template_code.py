"""The recipe of the template for code: the base template and Python packages. docs/reference/code-template.md."""

from __future__ import annotations

REVISION = 1  # raise it when python_template.py builds something else out of the same data
PYTHON = "3.11"  # Debian 12's
PACKAGES = (
    "bash_kernel>=0.10,<1",
    "ipykernel>=7,<8",
    "jupyter_client>=8.6,<9",
    "matplotlib>=3.10,<4",
    "numpy>=2,<3",
    "openpyxl>=3.1,<4",
    "pandas>=2.2,<4",
    "requests>=2.32,<3",
)
KERNEL = ("-m", "bash_kernel.install", "--prefix", "/usr/local")  # the others come with their entry
LIBC = (2, 36)  # of Debian 12
DIRECTORY = f"usr/local/lib/python{PYTHON}/dist-packages"
CHECK = "import bash_kernel, ipykernel, jupyter_client, matplotlib.pyplot, numpy, openpyxl, pandas, requests"
