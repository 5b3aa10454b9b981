// Mends what gradio's own parts lack for screen readers: the upload's name lacks the words that are seen on it, and the
// heading of a message is a button around another button.
new MutationObserver(() => {
  for (const upload of document.querySelectorAll(".upload-container")) {
    const name = `Video: ${upload.textContent.trim().replace(/\s+/g, " ")}`;
    if (upload.ariaLabel !== name) upload.ariaLabel = name;
  }
  for (const heading of document.querySelectorAll(".toast-header[role=button]")) {
    heading.removeAttribute("role");
    heading.removeAttribute("tabindex");
  }
}).observe(document, { childList: true, subtree: true });
