"""stub"""
def write_report(run, folder):
    (folder/"index.html").write_text("x")
