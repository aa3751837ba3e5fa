"""Starting the processes of a run on the machines it asks for."""
