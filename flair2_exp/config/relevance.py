"""When an option decides a run's result: the conditions that options name in their declarations.

Each takes the whole config. Where it is false the experiment does not read the option, whose value
then leaves the run's identity alone (`config.identity`). Of a run that does not train the scores
are the result; the loss that it reports beside them is not. What a user's own loss or schedule
reads is not known here: all options count for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flair2_exp.config.fields import Condition

if TYPE_CHECKING:
    from flair2_exp.config.experiment import Config
    from flair2_exp.models.registry import NetworkSpec


def if_trained(config: Config) -> bool:
    """Return whether the experiment trains."""
    return config.train


def if_averaged(config: Config) -> bool:
    """Return whether the weights are averaged over the training."""
    return config.callbacks.average.kind != "none"


def if_averaged_exponentially(config: Config) -> bool:
    """Return whether older weights fade from their average."""
    return config.callbacks.average.kind == "ema"


def if_aerial(config: Config) -> bool:
    """Return whether the aerial patch is read."""
    return "aerial" in config.reads


def if_series(config: Config) -> bool:
    """Return whether the series are read, without which there is no satellite head either."""
    return "satellite" in config.reads


def if_flair(config: Config) -> bool:
    """Return whether the data are FLAIR #2's."""
    return config.dataset.is_flair


def if_metadata(config: Config) -> bool:
    """Return whether the metadata are read."""
    return config.metadata.enabled


def if_filtered(config: Config) -> bool:
    """Return whether covered acquisitions are left out."""
    return config.s2_preproc.cloud_filter


def if_single_dates(config: Config) -> bool:
    """Return whether the series are not monthly means, which lie on the 15th of each month."""
    return not config.s2_preproc.monthly


def if_shuffled_split(config: Config) -> bool:
    """Return whether domains are shuffled to draw those that validate."""
    return config.split.name in ("reference", "leave_domains_out")


def if_domains_left_out(config: Config) -> bool:
    """Return whether named domains are the test part."""
    return config.split.name == "leave_domains_out"


def if_labels_drawn(config: Config) -> bool:
    """Return whether a part of the training patches is drawn."""
    return config.train and config.split.label_fraction < 1


def if_flips(config: Config) -> bool:
    """Return whether the flips are drawn with a probability."""
    return config.aug.geometry == "flips"


def if_series_move(config: Config) -> bool:
    """Return whether the aerial patch moves, so that the series follow it or do not."""
    return if_series(config) and (config.aug.geometry != "none" or config.aug.zoom > 0)


def if_first_weights(config: Config) -> bool:
    """Return whether no file replaces the encoder's first weights with all of the network."""
    return if_aerial(config) and not (config.model.weights or config.checkpoint)


def if_widths(config: Config) -> bool:
    """Return whether the aerial decoder is one whose blocks' widths are options."""
    return if_aerial(config) and config.model.has_widths


def if_no_checkpoint(config: Config) -> bool:
    """Return whether no checkpoint replaces the weights that a file gave."""
    return not config.checkpoint


def if_context(config: Config | NetworkSpec) -> bool:
    """Return whether the fusion has its collapsed term."""
    return config.fusion.terms != "cropped"


def if_context_drops(config: Config) -> bool:
    """Return whether the perceptrons of the collapsed term drop, as they do in training."""
    return config.train and if_context(config)


def if_series_drop(config: Config) -> bool:
    """Return whether modality dropout has a rate."""
    return config.fusion.dropout_rate > 0


def if_series_may_drop(config: Config) -> bool:
    """Return whether modality dropout takes place: in training, or always (a quirk)."""
    return config.train or config.fusion.dropout == "always_batch"


def if_seeded(config: Config) -> bool:
    """Return whether anything is drawn: in training, or by modality dropout always (a quirk)."""
    return config.train or drops_always(config)


def in_network(node: str) -> Condition:
    """Return the condition that the network's file names this node as one with options of it."""

    def is_named(config: Config) -> bool:
        return node in config.model.nodes

    return is_named


def unless(node: str, *kinds: str) -> Condition:
    """Return the condition that a node's class (`_target_`) is none of these, which ignore it."""

    def is_another(config: Config) -> bool:
        return getattr(config, node)._target_ not in kinds

    return is_another


# Batches of patches, which scores should not depend on.


def if_validated_by_batches(config: Config) -> bool:
    """Return whether the division of the validation patches into batches and among devices counts.

    In training it does: `val/loss`, by which epochs are compared, is a mean over batches.
    """
    cut = config.data.drop_last or config.trainer.limit_val_batches is not None
    return config.train or cut or scores_by_batches(config)


def if_tested_by_batches(config: Config) -> bool:
    """Return whether the division of the test patches into batches and among devices counts."""
    return config.trainer.limit_test_batches is not None or scores_by_batches(config)


def if_turned_in_tests(config: Config) -> bool:
    """Return whether test patches are predicted in more symmetries than as they are."""
    return config.test_time.symmetries != "none"


def if_divided(config: Config) -> bool:
    """Return whether the division of any patches among devices counts.

    In training it does: batch normalisation is of each device's own batch, so that two devices with
    batches of 5 train otherwise than one with batches of 10.
    """
    return if_validated_by_batches(config) or if_tested_by_batches(config)


def if_batches_shared(config: Config) -> bool:
    """Return whether several devices share the training, so that batch norms could be over all.

    How many -1 are is not known before the run.
    """
    trainer = config.trainer
    return config.train and (trainer.devices != 1 or trainer.num_nodes > 1)


def scores_by_batches(config: Config | NetworkSpec) -> bool:
    """Return whether a quirk lets a batch's other patches, or its number, into a patch's scores.

    Args:
        config: Of an experiment, or of a network: they have the same nodes.
    """
    nodes, fusion = config.model.nodes, config.fusion
    first = "fusion" in nodes and if_context(config) and fusion.collapsed == "first_sample"
    padded = "utae" in nodes and config.utae.normalise_padding  # to the longest of the batch
    return first or padded or drops_always(config)


def drops_always(config: Config | NetworkSpec) -> bool:
    """Return whether modality dropout drops in validation and test as well."""
    named, fusion = "fusion" in config.model.nodes, config.fusion
    return named and fusion.dropout == "always_batch" and fusion.dropout_rate > 0
