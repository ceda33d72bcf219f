"""From a config to a fitted model: build, fit, record.

train       all of it, top to bottom
build       the objects, checked before data is read; `devices`: what the Trainer's arguments may be here
module      what Lightning calls: training, validation and test steps
steps       the optimizer steps of a batch, and a CUDA graph of them; `schedules` of the learning rate
health      warnings of training that goes on but learns nothing; `diagnosis`: what a failure inside torch means
progress    what is shown while it trains; `result`: what is printed at the end
classifier  trained once for a dataset, for metrics of samples
"""
