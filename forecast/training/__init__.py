"""From a panel to a trained model: split, closed form, training of each member, what is set afterwards, final fit.

The only room that knows Lightning; scoring imports nothing of it.
"""
