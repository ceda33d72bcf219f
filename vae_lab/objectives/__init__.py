"""What training minimises: one file for each family of papers, one class for each objective."""
