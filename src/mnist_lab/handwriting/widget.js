// The drawing pad (pad.js) as a widget of a notebook: what pad.py appends to it.
export default {
  render({ model, el }) {
    const { pad } = drawingPad(el, (canvas) => {
      const picture = canvas?.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const grey = new Uint8Array(picture ? canvas.width * canvas.height : 0);
      for (let i = 0; i < grey.length; i++) grey[i] = picture.data[4 * i];
      model.set("canvas", new DataView(grey.buffer));
      model.save_changes();
    });
    const show = answers(pad, model.get("classes"));
    const update = () => {
      const bytes = model.get("seen"), probabilities = model.get("probabilities");
      const image = bytes?.byteLength ? new Uint8Array(bytes.buffer, bytes.byteOffset, 784) : null;
      show(probabilities.length ? probabilities : null, image);
    };
    model.on("change:answer", update);
    update();
  },
};
