"""DCP's writer, which also hashes what it wrote. See integrity.py, which needs no torch."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from picolab.training.integrity import digest


@dataclass(frozen=True)
class HashedResult(WriteResult):
    """DCP's report of a tensor that was written, with the hash of the file that it is in."""

    digest: str


class HashingWriter(dcp.FileSystemWriter):
    """Writes as DCP does; afterwards `hashes` has, on the coordinator, those of all ranks' files.

    They travel with the reports that DCP collects anyway, so that an error while hashing is an
    error of that rank's writing, which all ranks are told.
    """

    hashes: dict[str, str]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in written}
        hashes = {name: digest(Path(self.path) / name) for name in names}
        future: Future[list[WriteResult]] = Future()
        future.set_result(
            [
                HashedResult(
                    index=result.index,
                    size_in_bytes=result.size_in_bytes,
                    storage_data=result.storage_data,
                    digest=hashes[result.storage_data.relative_path],
                )
                for result in written
            ]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[HashedResult]]) -> None:
        self.hashes = {
            result.storage_data.relative_path: result.digest for rank in results for result in rank
        }
        super().finish(metadata, results)
        self.hashes[".metadata"] = digest(Path(self.path) / ".metadata")
