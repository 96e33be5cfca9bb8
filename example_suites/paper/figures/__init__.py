"""The paper's figures and its Table 1, by the number that users give."""

from figures.figure import Figure, Selection
from figures.figure_2 import Figure2
from figures.figure_3 import Figure3
from figures.figure_6 import Figure6
from figures.figure_9 import Figure9
from figures.figure_11 import Figure11
from figures.figure_13 import Figure13
from figures.figure_15 import Figure15
from figures.table_1 import Table1

__all__ = ["FIGURES", "Figure", "Selection"]

FIGURES: dict[str, Figure] = {
    "2": Figure2(),
    "3": Figure3(),
    "6": Figure6(),
    "9": Figure9(),
    "11": Figure11(),
    "13": Figure13(),
    "15": Figure15(),
    "table1": Table1(),
}
