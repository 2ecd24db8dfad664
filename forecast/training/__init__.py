"""From a panel to a trained model: split, closed form, training of each member, what is set afterwards, final fit.

Only this room and `forecast.finetuning` import Lightning; scoring imports nothing of it.
"""
