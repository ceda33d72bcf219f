"""The run folder: what it holds, and how it survives kills, full disks and other processes.

folder           the record: status, config, log, result; names of folders
files            whole files or none; locks
metrics_file     metrics.jsonl: the only writer and reader
measurements     speed, memory, the hash of the parameters
checkpoints      when a run saves, also at a signal; the file that it writes, and reads back
signals          the signals that end a process
process          how a command ends: one line and an exit code; which process of a run this is
resume           the command line that continues a run
structure        what was read, compared with what should be there
continuation     what a checkpoint must hold to be continued exactly
trained, export  a model read back; a model to give away
"""
