// Before anything is drawn: what the reader chose in this browser; else the system's choice holds.
try {
  document.documentElement.dataset.theme = localStorage.getItem("onnxq-theme") || "";
} catch { /* a page opened from a file may have no storage */ }
