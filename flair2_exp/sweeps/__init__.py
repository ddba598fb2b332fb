"""Many runs: ablations, resume, and the Optuna sweeper."""
