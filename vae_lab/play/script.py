"""What Streamlit runs at every visit; it is short because Streamlit reads it anew."""

from vae_lab.play.app import page

page()
