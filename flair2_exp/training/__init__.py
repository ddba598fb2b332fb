"""Losses, metrics and the one LightningModule that trains every model."""
