"""The MLflow run: identity, provenance, figures, parent and child."""
