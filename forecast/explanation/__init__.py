"""What a forecast is made of: attributions by gradients and by occlusion."""
