"""Names of presets, methods and scores, known without the imports that bring what they name."""

#: Presets of :class:`trvae_sc.TRVAE`.
PRESETS = ("default", "paper", "cvae", "mmd_cvae", "vae", "beta_vae", "autoencoder")
#: Methods of :mod:`trvae_sc.baselines` and :mod:`trvae_sc.family`.
METHODS = (
    *("no_change", "mean_shift", "nearest_shift"),
    *("mean_condition", "nearest_condition", "feature_ridge", "sum_of_parts", "context_shift"),
    *("latent_shift", "trvae", "no_transfer"),
    *PRESETS[1:],
    *("cgan", "cyclegan", "flow_matching", "flow_transfer", "paired"),
)
#: Scores that methods can be chosen by.
METRICS = (
    *("effect_r2", "effect_pearson", "specific_pearson", "r2_mean", "r2_var", "variance_ratio"),
    *("energy_distance", "mmd", "de_overlap", "direction_accuracy"),
)
