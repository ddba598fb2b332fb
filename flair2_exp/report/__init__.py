"""From many runs to an answer: leaderboard, statistics, figures."""
