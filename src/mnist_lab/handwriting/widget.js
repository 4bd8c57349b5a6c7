// The drawing pad as a widget of a notebook: pad.py appends this file to pad.js.

export default {
  render({ model, el }) {
    let isHidden = false; // whether the browser hides the drawing from the page
    const { pad } = drawingPad(el, (canvas) => {
      isHidden = canvas !== null && !canReadCanvas(canvas.width, canvas.height);
      const isReadable = canvas !== null && !isHidden;
      const grey = isReadable ? greyValues(canvas) : new Uint8Array(0);
      model.set("canvas", new DataView(grey.buffer));
      model.save_changes();
      update();
    });

    const show = addAnswer(pad, model.get("classes"));
    function update() {
      const bytes = model.get("seen");
      const probabilities = model.get("probabilities");
      const image = bytes?.byteLength ? new Uint8Array(bytes.buffer, bytes.byteOffset, 784) : null;
      show(probabilities.length ? probabilities : null, image, isHidden ? UNREADABLE : null);
    }
    model.on("change:answer_count", update);
    update();
  },
};

// The ink is black on white, so the red channel is the grey value.
function greyValues(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const grey = new Uint8Array(canvas.width * canvas.height);
  for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i];
  return grey;
}
