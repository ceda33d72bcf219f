"""What the fork server finds out before any job starts, so that no job has to: a twentieth of a second for each.

The commit is then that of the code which all jobs run, also where somebody changes it meanwhile.
"""

from PIL import Image

from vae_lab.runs.folder import commit, hardware

Image.preinit()
commit()
hardware()
