"""Makes the tutorials as notebooks with all outputs and pictures, which can be read online: notebooks/*.ipynb.

The picture of each also goes to results/tutorials, for the README.

    pip install jupytext nbclient ipykernel
    python tutorials/notebooks.py          # all of them, two side by side
    python tutorials/notebooks.py 05 11    # these

The code is the scripts'. A test compares the two, so a script that has changed needs this command again.
"""

import base64
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
PICTURES = FOLDER.parent / "results" / "tutorials"


def make(path: Path) -> tuple[Path, float]:
    """Executes a tutorial as a notebook. -> the notebook, seconds"""
    import jupytext  # imported late: main() says it kindly if one of these is missing
    import nbformat
    from nbclient import NotebookClient

    start = time.perf_counter()
    notebook = jupytext.read(path)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    for n, cell in enumerate(notebook.cells):
        cell.id = f"cell-{n}"  # a random id would change with every call
        if cell.cell_type == "code":
            cell.metadata = {}  # times of day
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]  # progress bars
            for picture in (o["data"]["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})):
                PICTURES.mkdir(parents=True, exist_ok=True)
                (PICTURES / f"{path.stem}.png").write_bytes(base64.b64decode(picture))
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    target = FOLDER / "notebooks" / f"{path.stem}.ipynb"
    target.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, target)
    return target, time.perf_counter() - start


def main(numbers: list[str]) -> int:
    """Makes the notebooks of these numbers, or all. -> exit code"""
    paths = [path for path in sorted(FOLDER.glob("[0-9]*.py")) if not numbers or path.name[:2] in numbers]
    if len(paths) < len(numbers):
        print(f"tutorials have the numbers 01 to 14, not {', '.join(numbers)}", file=sys.stderr)
        return 2
    try:
        import ipykernel  # noqa: F401
        import jupytext  # noqa: F401
        import nbclient  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is missing: pip install jupytext nbclient ipykernel", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(make, path) for path in paths]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="notebooks", dynamic_ncols=True):
            target, seconds = job.result()
            tqdm.write(f"{target.relative_to(FOLDER)}: {seconds:.0f} s, {target.stat().st_size / 2**20:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
