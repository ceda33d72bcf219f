// A square plane, and sliders below it. Without a lasso a point is dragged on it, two latents at once; with one, points
// are looked at, and some are enclosed. The page answers every move, and the next is sent when the last was answered,
// so that moves never wait in a row. What is wanted of the latents is {number: value}.
const PATIENCE = 1000 // milliseconds without an answer

export default function ({ data, parentElement, setStateValue }) {
  const canvas = parentElement.querySelector("canvas.main"), tip = parentElement.querySelector(".tip")
  const memory = (canvas.memory ??= { images: {}, path: [] })
  const [[left, right], [bottom, top]] = data.range
  const rounded = (number) => +number.toPrecision(4)
  const image = (url) => {
    if (!url) return null
    if (!memory.images[url]) {
      const loaded = new Image()
      loaded.onload = () => draw()
      loaded.src = url
      memory.images = { ...memory.images, [url]: loaded }
    }
    return memory.images[url]
  }
  const place = ([x, y]) => [
    ((x - left) / (right - left)) * canvas.width, ((top - y) / (top - bottom)) * canvas.height]
  const value = ([px, py]) => [left + (px / canvas.width) * (right - left), top - (py / canvas.height) * (top - bottom)]
  const current = () => ({ ...data.at, ...memory.wanted })
  const pixel = (event) => {
    const box = canvas.getBoundingClientRect(), within = (v, most) => Math.min(Math.max(v, 0), most)
    return [within(((event.clientX - box.left) / box.width) * canvas.width, canvas.width),
      within(((event.clientY - box.top) / box.height) * canvas.height, canvas.height)]
  }
  const places = () => (data.points ? data.points[0].map((x, i) => place([x, data.points[1][i]])) : [])
  const nearest = ([px, py], reach) => {
    let best = -1, least = reach * reach
    places().forEach(([x, y], i) => {
      const far = (x - px) ** 2 + (y - py) ** 2
      if (far < least) [best, least] = [i, far]
    })
    return best
  }

  function draw() {
    const size = Math.round(canvas.clientWidth * devicePixelRatio) || 400, pen = canvas.getContext("2d")
    canvas.width = canvas.height = size
    const ink = getComputedStyle(canvas).color, unit = size / canvas.clientWidth || 1
    const background = image(data.background)
    if (background?.complete) {
      pen.imageSmoothingEnabled = false
      pen.drawImage(background, 0, 0, size, size)
    } else {
      pen.strokeStyle = ink
      pen.globalAlpha = 0.25
      const [x, y] = place([0, 0])
      pen.strokeRect(x, -1, 0, size + 2)
      pen.strokeRect(-1, y, size + 2, 0)
    }
    const inside = new Set(memory.chosen ?? [])
    places().forEach(([x, y], i) => {
      pen.globalAlpha = data.lasso ? (inside.size && !inside.has(i) ? 0.2 : 0.85) : 0.3
      pen.fillStyle = data.colours?.[i] ?? ink
      pen.beginPath()
      pen.arc(x, y, (data.lasso ? 3.2 : 2) * unit, 0, 7)
      pen.fill()
    })
    pen.globalAlpha = 1
    if (!background) {
      pen.fillStyle = ink
      pen.font = `${12 * unit}px sans-serif`
      pen.textAlign = "right"
      pen.fillText(data.names[0], size - 8 * unit, size - 8 * unit)
      pen.textAlign = "left"
      pen.fillText(data.names[1], 8 * unit, 18 * unit)
    }
    if (memory.path.length > 1) {
      pen.strokeStyle = ink
      pen.lineWidth = 1.5 * unit
      pen.beginPath()
      memory.path.forEach((point) => pen.lineTo(...point))
      pen.closePath()
      pen.stroke()
    }
    if (data.dims) {
      const [x, y] = place(data.dims.map((dim) => current()[dim]))
      for (const [colour, width] of [["#000a", 4], ["#fff", 2]]) {
        pen.strokeStyle = colour
        pen.lineWidth = width * unit
        pen.beginPath()
        pen.arc(x, y, 8 * unit, 0, 7)
        pen.stroke()
      }
    }
  }

  function send() {
    clearTimeout(memory.timer)
    memory.number = (memory.number ?? Date.now()) + 1
    memory.sent = memory.wanted
    memory.timer = setTimeout(answered, PATIENCE)
    setStateValue("move", { number: memory.number, latents: memory.wanted })
  }
  function answered() {
    clearTimeout(memory.timer)
    const isLast = memory.sent === memory.wanted
    memory.sent = null
    if (!isLast) send()
    else if (!memory.drags) memory.wanted = null
  }
  function want(latents) {
    memory.wanted = { ...memory.wanted, ...latents }
    if (!memory.sent) send()
    draw()
    slide()
  }
  function wantPoint(point) {
    const ranges = [[left, right], [bottom, top]]
    want(Object.fromEntries(data.dims.map((dim, i) =>
      [dim, rounded(Math.min(Math.max(point[i], ranges[i][0]), ranges[i][1]))])))
  }
  function slide() {
    for (const { dim } of data.sliders ?? []) {
      const row = sliders.querySelector(`[data-dim="${dim}"]`)
      row.querySelector("input").value = current()[dim]
      row.querySelector("output").textContent = current()[dim].toFixed(2)
    }
  }
  function choose(path) {
    if (path.length > 8) {
      const shape = new Path2D()
      path.forEach((point) => shape.lineTo(...point))
      const pen = canvas.getContext("2d")
      memory.chosen = places().flatMap(([x, y], i) => (pen.isPointInPath(shape, x, y) ? [i] : []))
    } else {
      const one = nearest(path[0], 24 * devicePixelRatio)
      memory.chosen = one < 0 ? [] : [one]
    }
    setStateValue("chosen", memory.chosen)
  }
  function hover(point) {
    const one = nearest(point, 16 * devicePixelRatio), sheet = image(data.sheet)
    tip.style.display = one < 0 || !sheet?.complete ? "none" : "block"
    if (tip.style.display === "none") return
    const [width, height, columns] = data.tile, thumbnail = tip.querySelector("canvas"), scale = canvas.clientWidth / canvas.width
    thumbnail.width = width
    thumbnail.height = height
    thumbnail.getContext("2d").drawImage(
      sheet, (one % columns) * width, Math.floor(one / columns) * height, width, height, 0, 0, width, height)
    tip.querySelector("div").textContent = data.texts[one]
    const [x, y] = places()[one]
    tip.style.left = `${Math.min(x * scale + 12, canvas.clientWidth - 96)}px`
    tip.style.top = `${Math.max(y * scale - 116, 0)}px`
  }

  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId)
    memory.drags = true
    memory.path = data.lasso ? [pixel(event)] : []
    if (!data.lasso) wantPoint(value(pixel(event)))
  }
  canvas.onpointermove = (event) => {
    if (memory.drags && data.lasso) memory.path.push(pixel(event))
    if (memory.drags && !data.lasso) wantPoint(value(pixel(event)))
    if (data.lasso) hover(pixel(event))
    if (memory.drags) draw()
  }
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (memory.drags && data.lasso) choose(memory.path)
    memory.drags = false
    memory.path = []
    if (!memory.sent) memory.wanted = null
    draw()
  }
  canvas.onpointerleave = () => (tip.style.display = "none")
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key]
    if (!step || data.lasso) return
    event.preventDefault()
    const [x, y] = data.dims.map((dim) => current()[dim])
    wantPoint([x + (step[0] * (right - left)) / 50, y + (step[1] * (top - bottom)) / 50])
  }
  parentElement.querySelector(".legend").replaceChildren(...(data.legend ?? []).map(([name, colour]) => {
    const entry = document.createElement("span"), dot = document.createElement("i")
    dot.style.background = colour
    entry.append(dot, name)
    return entry
  }))
  const sliders = parentElement.querySelector(".sliders"), wantedRows = JSON.stringify(data.sliders ?? [])
  if (memory.rows !== wantedRows) {
    memory.rows = wantedRows
    sliders.replaceChildren(...(data.sliders ?? []).map(({ dim, label, low, high }) => {
      const row = document.createElement("label"), name = document.createElement("span")
      const output = document.createElement("output"), input = document.createElement("input")
      row.dataset.dim = dim
      name.textContent = label
      Object.assign(input, { type: "range", min: low, max: high, step: (high - low) / 400 })
      input.oninput = () => memory.onslide(dim, +input.value)
      row.append(name, output, input)
      return row
    }))
  }
  memory.onslide = (dim, value) => want({ [dim]: rounded(value) })
  canvas.style.display = data.hidden ? "none" : ""
  if (memory.sent && data.answer === memory.number) answered()
  slide()
  const watcher = new ResizeObserver(draw)
  watcher.observe(canvas)
  draw()
  return () => watcher.disconnect()
}
