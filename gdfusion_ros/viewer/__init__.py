"""Looking at grids: pictures, a page in the browser, one self-contained HTML file, a Rerun recording."""
