"""What is measured: the catalogue of all metrics, and what computes them.

A metric of the config group `metrics` is an object with

    reset()                         start anew, before a pass over a split
    update(vae, batch, q, terms)    look at a batch: images and labels, q(z given x) (None of a model without encoder),
                                    what the objective returned
    compute(total)                  {name: 0-dim tensor}; empty where the model does not have it. `total` adds a tensor
                                    up over the processes of a run on several devices

It may have `per_image() -> {name: (N,) tensor}`, which `vae-lab-eval` stores, so that two runs can be compared image by
image; and, where it takes long, `advance`, which is called with the number of images whose work is done since.

Where it makes no sense without an encoder or a prior, it declares that as an objective does: `needs = ("encoder",)`.
Those of the default set measure what there is.
"""
