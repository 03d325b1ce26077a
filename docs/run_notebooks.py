"""Runs the notebooks in examples/ anew and keeps what they print and draw.

python docs/run_notebooks.py
"""

from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def main() -> None:
    """Run each notebook in its own folder; what differs from run to run without meaning is not kept."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
        notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        for index, cell in enumerate(notebook.cells):
            cell.id, cell.metadata = f"cell-{index}", {}
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
