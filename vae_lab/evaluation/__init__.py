"""`vae-lab-eval` and the pictures: what is measured and drawn of a trained model.

evaluate  the command
run       a trained run at hand, for arrays and tensors
gallery   which pictures are drawn, when, and from which latents; `pictures`: how
latents   codes to a file, and points as pictures
samplers  fitted to the codes after training, in the prior's place
"""
