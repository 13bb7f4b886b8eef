"""One entry for all splitters. No torch, no model: it runs in milliseconds, anywhere."""

from __future__ import annotations

from merit.config.sections import SplitterName
from merit.split.partition import Partition
from merit.split.splitter import SplitRequest, find_splitter


def make_partition(splitter: SplitterName, request: SplitRequest) -> Partition:
    """The mixture's datasets in groups.

    Raises:
        InputError: no such splitter; fewer datasets than groups; a wrong or missing file.
        StageError: the splitter needs the conflict stage, which belongs to another mixture or has not run.
    """
    return find_splitter(splitter).partition(request).model_copy(update={"splitter": splitter})
