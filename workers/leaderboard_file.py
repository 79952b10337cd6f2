"""A leaderboard from files of votes, without a fleet: `python -m workers.leaderboard_file FILE...`, for `fleetchat leaderboard`.

The board is one JSON object on standard output; on standard error stands what was skipped of the files. A vote that is
in several files counts once. The arena's rules (FLEETCHAT_ARENA_FILE) hold as they do in a fleet.
"""

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from broker import rules, votelogs
from broker.config import Config
from broker.errors import FleetError
from broker.leaderboard import ALL, Board, BoardRequest
from broker.votelogs import Complaints, Report
from broker.votes import Vote
from workers.ballots import Ballots, Entry
from workers.boards import Boards

BATCH = 10_000


def compute(files: Sequence[Path], request: BoardRequest, arena: rules.Rules) -> Board:
    """The board of all votes in the files.

    Raises:
        SetupError: a file cannot be read.
    """
    ballots, entries = Ballots(), map(_entry, _votes(files))
    while batch := list(islice(entries, BATCH)):
        ballots.add(batch)
    view, boards = ballots.view(), Boards(arena)
    boards.suspect(view, request.named, ballots.numbers(arena.ratings.trusted))
    return boards.board(view, request, {}, ballots.people, keep=False)


def _votes(files: Sequence[Path]) -> Iterator[Vote]:
    salt, seen = secrets.token_bytes(32), set[int]()  # only who is the same voter matters
    for file in files:
        complaints = Complaints(file)
        for one in votelogs.found(file, salt, Report(), complaints, keep=False):
            known = hash(one.vote.battle)
            if known not in seen:
                seen.add(known)
                yield one.vote
        complaints.end()


def _entry(vote: Vote) -> Entry:
    flat = vote.encode()
    return b"", {name.encode(): value.encode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m workers.leaderboard_file")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--category", default=ALL)
    parser.add_argument("--style", action="store_true")
    parser.add_argument("--named", action="store_true")
    given = parser.parse_args()
    request = BoardRequest(category=given.category, style=given.style, named=given.named)
    try:
        board = compute(given.files, request, rules.read(Config.from_env().arena_file))
    except FleetError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    json.dump(board, sys.stdout, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
