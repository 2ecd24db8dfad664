"""The recurrent network: encoder, decoders, ensembles, losses and the state that is carried between runs.

Training is in `forecast.training`, changes for single series in `forecast.models.adapters`.
"""
