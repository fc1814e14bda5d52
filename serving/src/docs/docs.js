// Shows /openapi.json for people. Everything from it is set as text, never as markup.
const make = (tag, text, name) => {
  const element = document.createElement(tag)
  if (text !== undefined) element.textContent = text
  if (name) element.className = name
  return element
}

const row = (...cells) => {
  const tr = make('tr')
  for (const cell of cells) {
    const td = make('td')
    td.append(cell instanceof Node ? cell : document.createTextNode(cell ?? ''))
    tr.append(td)
  }
  return tr
}

const typeOf = (schema) => {
  if (!schema) return ''
  if (schema.$ref) return schema.$ref.split('/').pop()
  if (schema.type === 'array') return `${typeOf(schema.items)}[]`
  if (schema.oneOf) return schema.oneOf.map(typeOf).join(' | ')
  return [schema.type].flat().filter(Boolean).join(' | ')
}

const schemaRows = (schema, all) => {
  const target = schema?.$ref ? all[schema.$ref.split('/').pop()] : schema
  return Object.entries(target?.properties ?? {}).map(([name, property]) =>
    row(make('code', name), typeOf(property), property.description ?? ''))
}

const table = (rows) => {
  const element = make('table')
  element.append(...rows)
  return element
}

const operation = (path, method, it, schemas) => {
  const details = make('details')
  const summary = make('summary')
  summary.append(make('span', method.toUpperCase(), `method ${method}`), make('code', path), make('span', it.summary ?? '', 'what'))
  const body = make('div')
  if (it.description) body.append(make('p', it.description))
  if (it.parameters?.length) {
    body.append(make('h3', 'Parameters'))
    body.append(table(it.parameters.map((p) => row(make('code', p.name), p.in, `${p.description ?? ''}${p.required ? ' (required)' : ''}`))))
  }
  for (const [type, content] of Object.entries(it.requestBody?.content ?? {})) {
    body.append(make('h3', `Body: ${type}`), table(schemaRows(content.schema, schemas)))
  }
  body.append(make('h3', 'Answers'))
  for (const [status, answer] of Object.entries(it.responses ?? {})) {
    const types = Object.keys(answer.content ?? {}).join(', ')
    body.append(make('p', `${status} ${answer.description ?? ''} ${types && `(${types})`}`))
    const schema = answer.content?.['application/json']?.schema
    if (!schema) continue
    body.append(table(schemaRows(schema, schemas)))
    const example = schemas[schema.$ref?.split('/').pop()]?.example
    if (example) body.append(make('pre', JSON.stringify(example, null, 2)))
  }
  details.append(summary, body)
  return details
}

const show = (api) => {
  document.getElementById('about').textContent = `${api.info.description} Version ${api.info.version}.`
  const main = document.getElementById('paths')
  main.replaceChildren()
  const schemas = api.components?.schemas ?? {}
  for (const tag of api.tags ?? []) {
    main.append(make('h2', tag.name), make('p', tag.description))
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, it] of Object.entries(methods)) {
        if (it.tags?.includes(tag.name)) main.append(operation(path, method, it, schemas))
      }
    }
  }
}

fetch('/openapi.json')
  .then((response) => (response.ok ? response.json() : Promise.reject(new Error(`status ${response.status}`))))
  .then(show)
  .catch((error) => { document.getElementById('paths').textContent = `The description can’t be read: ${error.message}` })
