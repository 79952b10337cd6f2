"""Ratings from votes: Bradley-Terry, online Elo, style control, and which voters to set aside.

Arrays come in, arrays go out, all numpy: models are numbers from 0, an outcome is 0 (a wins), 1 (b wins) or 2 (a tie, or
both bad). It knows no Redis, no jobs, no names and no text.
"""
